"""Where the images are: folders, globs, files, archives, tables, videos, addresses, lists of these, standard input.

    arguments ─source_of→ sources ─entries: each once, in order→ items, which know how to read their bytes

Nothing is read but what names things, or holds them in order. What is not there, or cannot be read, comes out as an
item with its error.
"""

from image_encoders.bulk.sources.files import SourceFile
from image_encoders.bulk.sources.find import Sources, find
from image_encoders.bulk.sources.items import SourceItem
from image_encoders.bulk.sources.locators import locator_of, read_locator

__all__ = ["SourceFile", "SourceItem", "Sources", "find", "locator_of", "read_locator"]

"""Where the images are: folders, globs, files, lists of files, standard input.

    arguments ─source_of→ sources ─entries: each once, in order→ items, which know how to read their bytes

Nothing is read but folders and lists. What is not there, or cannot be read, comes out as an item with its error.
"""

from image_encoders.bulk.sources.files import SourceFile
from image_encoders.bulk.sources.find import Sources, find
from image_encoders.bulk.sources.items import SourceItem

__all__ = ["SourceFile", "SourceItem", "Sources", "find"]

"""`image-encoders info`: what a collection is."""

from __future__ import annotations

from image_encoders.cli.options import CollectionFolder, Json
from image_encoders.cli.printing import counted, print_json, print_table, shown

EXAMPLES = """\b
Examples:
  image-encoders info my-photos
  image-encoders info my-photos --json | jq .images"""


def info(
    collection: CollectionFolder,
    as_json: Json = False,
) -> None:
    """Show a collection's model, size and age.

    Also its precision, how many images and failures it has, and whether searches use an index.
    """
    from image_encoders.collection import Collection

    found = Collection.open(collection).info()
    if as_json:
        print_json(found)
        return
    size = f"{found['bytes'] / 1e6:,.1f} MB"
    index = f"an index over {found['indexed']:,}" if found["indexed"] else "no index: all are compared"
    if found["recall"] is not None:
        index += f", recall@10 {found['recall']:.3f} when it was built"
    print_table(
        (),
        [
            ("collection", f"{shown(found['path'])}, format {found['format']}, {size}"),
            ("model", f"{found['model']}, in {found['precision']}"),
            ("embeddings", f"{found['dim']} numbers, fingerprint {found['fingerprint']}"),
            ("images", f"{counted(found['images'], 'image')}, {index}"),
            ("failures", f"{found['failures']:,}"),
            ("from", ", ".join(map(shown, found["sources"])) or "no run has ended yet"),
            ("made", f"{found['created']} by image-encoders {found['package']}"),
            ("changed", found["changed"]),
        ],
    )

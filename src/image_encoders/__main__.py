"""`python -m image_encoders` is the command `image-encoders`."""

from image_encoders.cli import main

main()

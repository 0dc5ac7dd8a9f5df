"""`python -m image_encoders` is the command `image-encoders`."""

from image_encoders.cli import main

if __name__ == "__main__":  # a process that is spawned imports this too
    main()

"""Plain tables of what the zoo holds, one file per family. Nothing here imports torch."""

"""Images in folders, files and streams, and how they are paired."""

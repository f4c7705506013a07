"""The object store: read, list and replace objects on s3:// and file:// behind one small class."""

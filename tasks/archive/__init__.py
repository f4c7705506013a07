"""The archive: frames in the slots of a versioned Zarr store, how they get there, and how they are read."""

# Unit tests of parallel.

# Unit tests of coordinator.

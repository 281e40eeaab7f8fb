# Unit tests of distill.

# Unit tests of models.

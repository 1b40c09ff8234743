"""The library that the lessons import: small modules, made to be read."""

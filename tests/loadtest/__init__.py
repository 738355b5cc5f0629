"""Tests of the package `loadtest`."""

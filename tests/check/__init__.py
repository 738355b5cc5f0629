"""Tests of `echoload check`."""

"""Tests of the package `echoserver`."""

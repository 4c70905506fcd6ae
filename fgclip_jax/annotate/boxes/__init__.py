"""Finds the boxes of phrases: one interface, several detectors, each with the convention that its boxes have."""

"""An index of one's own pictures: whole pictures and regions of them, found by text or by example."""

"""Makes training data from pictures: long captions, regions with captions, and hard negatives."""

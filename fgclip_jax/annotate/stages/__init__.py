"""The steps from a picture to an annotation, each of one file: captions, phrases, boxes, region captions, negatives."""

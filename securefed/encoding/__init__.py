"""Between float vectors, ring vectors and bytes."""

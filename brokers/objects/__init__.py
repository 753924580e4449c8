"""The node's shared-memory objects: their layout (pure), arenas, and how values enter and leave."""

"""What the stages share. ``backend`` decides what stands behind the two vendor APIs; everything else is built on those."""

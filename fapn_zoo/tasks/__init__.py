"""What a task is: what it asks of data, what its answer means, how it is scored and shown."""

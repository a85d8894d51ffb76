"""What learners share and papers do not mention: networks, optimisers, captured graphs."""

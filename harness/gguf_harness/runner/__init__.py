"""What fixtures and the API call, a module for each capability."""

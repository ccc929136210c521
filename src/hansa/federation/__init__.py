"""What both sides of a network share: signed documents, TLS, messages and stubs of the services, errors as status codes."""

"""What coordinator and participants need to speak over a network: messages, stubs, TLS, errors as status codes and back."""

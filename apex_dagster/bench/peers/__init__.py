"""Other systems on the same documents and servers, each in an environment of its own."""

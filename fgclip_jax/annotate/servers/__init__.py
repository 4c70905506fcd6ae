"""Model servers: requests, the HTTP client and its endpoints, batch files, and the validation of every answer."""

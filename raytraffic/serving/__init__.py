"""The forecast service without Ray: requests read and checked, windows assembled as a store's are, answers written, HTTP routes."""

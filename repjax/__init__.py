"""repjax."""

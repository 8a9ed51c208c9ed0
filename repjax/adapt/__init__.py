"""Learning after deployment: import the method that you need."""

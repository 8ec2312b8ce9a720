"""What the tests of deploy/kubernetes are made of."""

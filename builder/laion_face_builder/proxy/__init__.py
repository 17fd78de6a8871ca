"""The guarding proxy that img2dataset goes through."""

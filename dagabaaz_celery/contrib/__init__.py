"""The package at home in other software: each part needs what it is for, and nothing of it is imported by the rest."""

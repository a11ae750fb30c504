"""Programs that run in the environments of peers, and import nothing of this project.

Each is given a shape, ``fan-1000`` or ``chain-40``, and the environment variables PEER_DATABASE (a PostgreSQL URL),
PEER_REDIS and PEER_DIRECTORY. It does the shape once, small, to warm up, then in earnest, and prints the seconds that
this took, from the call that starts it to its last body.
"""

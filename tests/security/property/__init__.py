"""Random tenants, users, rules and statements, run as the real roles, against an oracle.

``python -m tests.security.property --statements 20000 --seed 7``
"""

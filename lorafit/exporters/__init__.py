"""Exports of an adapter for other programs: one file a target, and the certificate that the export computes the same."""

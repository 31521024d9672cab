"""Time a policy server: calls in process and over loopback, and many clients, compared with openpi's server."""

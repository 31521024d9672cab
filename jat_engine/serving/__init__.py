"""Policy server: many clients' agents on one engine, over websockets."""

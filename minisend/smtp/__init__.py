"""SMTP as a library: replies, the sans-IO state machines, the wire form, the stream.  Knows neither queue nor configuration."""

"""What was measured of plans on devices: a folder a device, see docs/tuning.md."""

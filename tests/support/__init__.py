"""What tests share. No test file imports another one."""

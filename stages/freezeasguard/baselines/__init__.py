"""The baselines that FreezeAsGuard is compared with (METHOD, section 4)."""

"""Where traffic comes from: every source yields the same City record."""

from raytraffic.sources.city import City, Source

__all__ = ["City", "Source"]

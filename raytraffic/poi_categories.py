"""The categories of points of interest that the papers count."""

from __future__ import annotations

__all__ = ["LSDM_CATEGORIES", "UOMO_CATEGORIES"]

#: UoMo, Table 7.
UOMO_CATEGORIES = (
    "Shopping",
    "Enterprise",
    "Restaurant",
    "Local Living",
    "Transportation",
    "Public Health",
    "Automobile",
    "Physical facilities",
    "Accommodation",
    "Finance",
    "Government organs",
    "Education",
    "Business",
    "Public facilities",
    "scenic spot",
)
#: LSDM, Table II, in its order.
LSDM_CATEGORIES = (
    "Medical Care",
    "Hotel",
    "Business",
    "Life Service",
    "Transport Hub",
    "Culture",
    "Sports",
    "Residence",
    "Entertainment",
    "Scenic Spot",
    "Government",
    "Factory",
    "Shopping",
    "Restaurant",
    "Education",
    "Landmark",
    "Other",
)

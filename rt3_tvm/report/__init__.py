"""What people look at: tables now, pages and pictures beside them."""

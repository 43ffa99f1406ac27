"""What OneRec is measured against."""

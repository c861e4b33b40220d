"""The skip UNet and the cross-attention UNet that paint, a discriminator, and frozen networks with feature maps."""

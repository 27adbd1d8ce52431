"""A slim model written for those who have no slimvit: ONNX, torch.export, a folder for plain timm."""

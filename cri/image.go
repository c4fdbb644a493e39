// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"fmt"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-cri/berth/sandbox"
)

// ListImages lists images.
func (s *Server) ListImages(_ context.Context, r *cri.ListImagesRequest) (*cri.ListImagesResponse, error) {
	return &cri.ListImagesResponse{Images: s.cfg.Images.List(r.GetFilter().GetImage().GetImage())}, nil
}

// ImageStatus tells of one image; nothing where there is none.
func (s *Server) ImageStatus(ctx context.Context, r *cri.ImageStatusRequest) (*cri.ImageStatusResponse, error) {
	name := r.GetImage().GetImage()
	if name == "" {
		return nil, fmt.Errorf("%w: image is missing", sandbox.ErrInvalid)
	}
	img, err := s.cfg.Images.Status(name)
	if err != nil || img == nil {
		return &cri.ImageStatusResponse{}, err
	}
	resp := &cri.ImageStatusResponse{Image: img}
	if r.GetVerbose() {
		info, err := s.cfg.Images.Info(ctx, img.Id)
		if err != nil {
			return nil, err
		}
		if resp.Info, err = encoded(map[string]any{"info": info}); err != nil {
			return nil, err
		}
	}
	return resp, nil
}

// PullImage fetches an image.
func (s *Server) PullImage(ctx context.Context, r *cri.PullImageRequest) (*cri.PullImageResponse, error) {
	name := r.GetImage().GetImage()
	if name == "" {
		return nil, fmt.Errorf("%w: image is missing", sandbox.ErrInvalid)
	}
	id, err := s.cfg.Images.Pull(ctx, name, r.GetAuth(), r.GetSandboxConfig())
	if err != nil {
		return nil, err
	}
	return &cri.PullImageResponse{ImageRef: string(id)}, nil
}

// RemoveImage removes an image with all its names. Again is no error.
func (s *Server) RemoveImage(ctx context.Context, r *cri.RemoveImageRequest) (*cri.RemoveImageResponse, error) {
	name := r.GetImage().GetImage()
	if name == "" {
		return nil, fmt.Errorf("%w: image is missing", sandbox.ErrInvalid)
	}
	return &cri.RemoveImageResponse{}, s.cfg.Images.Remove(ctx, name)
}

// ImageFsInfo tells how much of which file systems images and containers take.
func (s *Server) ImageFsInfo(ctx context.Context, _ *cri.ImageFsInfoRequest) (*cri.ImageFsInfoResponse, error) {
	return s.cfg.Images.FsInfo(ctx)
}

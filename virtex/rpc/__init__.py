"""The Open Inference Protocol over gRPC: a shell beside wire and asgi_app, around the same services.

    virtex serve server:app --grpc-port 8001    or: await serve_grpc(app, port=8001)

Rules: knows service and its V2, which has the meaning of a request; here is what gRPC and protobuf say around it. Both
libraries are imported where they are used, for a service needs neither.
"""

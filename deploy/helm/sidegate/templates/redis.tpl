{{- if and .Values.enabled .Values.redis.enabled }}
{{- $name := printf "%s-redis" (include "sidegate.name" .) }}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ $name }}
  labels:
    app.kubernetes.io/name: {{ $name }}
spec:
  # What it holds may get lost: sessions live in cookies.
  replicas: 1
  selector:
    matchLabels:
      app.kubernetes.io/name: {{ $name }}
  template:
    metadata:
      labels:
        app.kubernetes.io/name: {{ $name }}
    spec:
      automountServiceAccountToken: false
      enableServiceLinks: false
      securityContext:
        {{- include "sidegate.podSecurity" . | nindent 8 }}
      containers:
        - name: redis
          image: {{ .Values.redis.image }}
          args: ["--save", "", "--appendonly", "no", "--maxmemory", {{ .Values.redis.maxmemory | quote }}, "--maxmemory-policy", "volatile-ttl"]
          ports:
            - name: redis
              containerPort: 6379
          readinessProbe:
            tcpSocket:
              port: redis
          resources:
            {{- toYaml .Values.redis.resources | nindent 12 }}
          securityContext:
            {{- include "sidegate.containerSecurity" . | nindent 12 }}
---
apiVersion: v1
kind: Service
metadata:
  name: {{ $name }}
  labels:
    app.kubernetes.io/name: {{ $name }}
spec:
  selector:
    app.kubernetes.io/name: {{ $name }}
  ports:
    - name: redis
      port: 6379
      targetPort: redis
{{- if .Values.networkPolicy.enabled }}
---
# Nobody but sidegate reaches it, and it reaches nobody.
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ $name }}
  labels:
    app.kubernetes.io/name: {{ $name }}
spec:
  podSelector:
    matchLabels:
      app.kubernetes.io/name: {{ $name }}
  policyTypes: ["Ingress", "Egress"]
  ingress:
    - from:
        - podSelector:
            matchLabels:
              {{- include "sidegate.selector" . | nindent 14 }}
      ports:
        - protocol: TCP
          port: 6379
{{- end }}
{{- end }}
